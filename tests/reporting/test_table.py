from frugalfm.reporting import render_table


def test_numbers_of_the_stand_in(results):
    lines = render_table(results).splitlines()
    assert lines[0].split()[:5] == ["model", "sequences", "pool", "epochs", "steps"]
    assert lines[2].split() == [
        *("random", "12", "20", "%", "3", "100", "1.500", "0.500", "[0.400,", "0.600]", "0.500"),
        "5",
    ]
    assert lines[8].split() == [
        *("untrained", "0", "0", "%", "0", "0", "0.250", "[0.150,", "0.350]", "0.250")
    ]
    names = [line[:20].strip() for line in lines[2:9]]
    assert names == [
        *("random", "Top I", "Top I by length", "CCI (coverage)"),
        *("full pool", "full pool, softmax1", "untrained"),
    ]


def test_fits_a_terminal_and_names_what_is_quantized(results):
    text = render_table(results)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("(weight-and-activation)") == 6
    assert "average kurtosis 4.500 (Gaussian 2.800), maximum inf-norm 5.00" in text
    assert not any(line != line.rstrip() for line in text.splitlines())
