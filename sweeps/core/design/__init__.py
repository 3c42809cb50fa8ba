"""What is asked: factors, designs, the paper's tables, studies and searches as values. No files, no clock."""
