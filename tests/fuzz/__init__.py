"""Random calls to every public function, valid and hostile, and what must hold of each: `python -m tests.fuzz`."""
