"""gqacheck inside other people's tools: a Trainer's callback, a pre-commit hook."""
