"""
Comparing methods on a user's own data.

`read` and `plan` turn a YAML file into runs, `pool` and `worker` execute them, and `records` keeps what they measured.
`search` chooses among the values of a grid. `summary`, `statistics`, `table` and `report` present the result.
"""
