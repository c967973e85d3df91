"""What is said of a quantization."""

from frugalfm.quantization.describing import summarise


def test_no_change_has_no_sign_of_its_own():
    found = {"label": "W8A8", "meaning": "8 bits", "sequences": 9, "agreement": 1.0}
    task = {"measured": "task", "metric": "mcc", "task": "t", "items": 9, "output_error": None}
    value = {"value": -0.34951, "quantized_value": -0.34951, "drop": 0.0}
    assert "mcc of t -0.3495 -> -0.3495 (+0.0000);" in summarise(found | task | value)
    loss = {"loss": 1.0, "quantized_loss": 1.0, "increase": -1e-9, "increase_percent": -1e-7}
    more = {"increase_standard_error": None, "targets": 5, "output_error": 0.0}
    assert "(+0.0000, +0.00 %)" in summarise(found | loss | more)
