"""Studies and searches as values: factors, designs, the paper's tables. No files, no clock."""
