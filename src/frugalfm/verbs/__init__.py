"""One file, one command, one public function each; they meet through folders on disk."""
