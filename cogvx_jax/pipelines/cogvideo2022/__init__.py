"""CogVideo of 2022 at work: prompts to ids, codes one after the other, frames in between, larger frames."""
