"""The commands: each reads its options, calls `svit_deploy.api` and prints.

Nothing heavy is imported before a command runs, so that `--help` stays quick.
"""
