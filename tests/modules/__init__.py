"""Each module of library/ run in this process, as Ansible would run it, against real stores."""
