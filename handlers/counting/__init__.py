"""How many tokens a text, a chat or a list of tools has for a model, and how sure that is. Pure but for the clock-free
loading of vocabularies; never touches the network.
"""
