"""Data in whatever form it comes: recognised, checked, split. Free of torch."""
