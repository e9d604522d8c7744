"""The door for agents: the Model Context Protocol over the same runs, files and rules as the REST API. Its tools call what
the REST routes call, so that both can do the same and neither can do more."""
