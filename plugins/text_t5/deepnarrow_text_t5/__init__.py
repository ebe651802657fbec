"""text_t5: T5 encoder-decoders, span corruption and text-to-text transfer."""
