"""Networks, data modules and the training loop; imports without the rest of the project."""
