"""The command line of studies: the verbs and their options."""
