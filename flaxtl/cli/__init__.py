"""The command line: entry point and exit codes, the parser, one function per command."""
