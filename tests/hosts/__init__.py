"""Test hosts: small machines with a systemd of their own, on a private network of this checkout.

Each is a root file system on overlayfs, a network namespace and a ``systemd-nspawn``. All of them share one base, made
once from Debian packages; what the roles of ``molecule/resources`` set up on them is kept as a second layer. So a
scenario starts in seconds with the application installed, and forgets everything at its end.
"""
