"""Statistics of numbers: paired differences, image noise, power, ANOVA. No files, no clock."""
