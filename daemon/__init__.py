"""The daemon: takes client sockets over SCM_RIGHTS and streams on them."""
