"""How people change what calls cost: price rules, aliases and price files, dated, checked and previewed."""
