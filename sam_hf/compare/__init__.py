"""
Methods compared on a user's own data: `plan` turns a YAML into runs, `pool` and `worker` carry them out, `search`
chooses what a grid leaves open, `statistics` and `table` say what came out.
"""
