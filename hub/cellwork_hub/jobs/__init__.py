"""The jobs service: it keeps jobs and runs, fires what is due, and hands runs to runners, which come over HTTP and fetch them."""
