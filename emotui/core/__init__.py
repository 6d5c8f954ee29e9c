"""What is computed: records, vocabulary, the engine, its client and the exports."""
