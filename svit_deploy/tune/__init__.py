"""A choice made by measurement: exports, verifies and benches candidates, and keeps the best."""
