"""One thin module per subcommand: declare, load, call, report."""
