"""Where examples come from: sources, readers of the formats of users, splits and loaders."""
