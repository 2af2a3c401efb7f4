"""What `make check` runs finds what it is there for."""
