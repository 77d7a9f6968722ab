"""The command line `cogvx`: a file for each verb, `main` for what they share at the end."""
