"""What servers need beside the files of an artefact."""
