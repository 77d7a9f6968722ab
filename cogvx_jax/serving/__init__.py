"""A server of videos: a durable queue, workers that make what it holds, and HTTP in front. Needs the extra `serve`."""
