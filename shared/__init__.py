"""Ground floor: configuration, records, run paths, publication, chat templates, vector file, console. No torch at import."""
