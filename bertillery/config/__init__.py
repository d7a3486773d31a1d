"""Configuration: sections, their types, and how YAML files and overrides become one."""
