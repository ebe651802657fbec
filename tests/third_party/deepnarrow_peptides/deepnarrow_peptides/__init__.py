"""Peptides: masked residues upstream, antimicrobial activity downstream."""
