"""Two reductions side by side: roles matched by name, layers by depth, components by how they order the roles."""
