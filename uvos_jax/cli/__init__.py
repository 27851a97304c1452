"""The `uvos` command: one file per subcommand, each no more than its arguments and one call."""
