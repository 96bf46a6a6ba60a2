"""The checked configuration of a run and of a study, and how it is composed."""
