"""Look after run directories: what is done (`status`), whether it is whole (`verify`), what may go (`gc`)."""
