"""How it runs: definitions, resources, checks, automation, executors, parameters, command line."""
