"""Executions of notebooks: parameters are checked first, then papermill runs the cells in a kernel used for this run only."""
