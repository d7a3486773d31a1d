"""Knowledge graphs: triples on disk, embeddings of entities and relations, links from text to entities."""
