"""Run the jobs of a sweep: their states, the processes that run them, the progress shown; imports no torch."""
