"""`orders` and `payments` by hand, as most tutorials have them: publish after the commit, settle on receipt, remember
nothing. Nothing of Eventkeel in here; it shows what Eventkeel is for. ``scripts/shop --naive`` runs them."""
