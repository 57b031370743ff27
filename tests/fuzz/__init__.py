"""Bytes that no honest client sends, thrown at a real server; ``make fuzz`` throws a hundred thousand."""
