"""Files: what users keep with the server. Uploads and outputs, each a tenant's, each with a lifetime."""
