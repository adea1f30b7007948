"""What the shop does not own: a payment provider and a mail server. Simulated, but reached as real ones are: by HTTP,
by SMTP, in a process of their own. Nothing of Eventkeel in here."""
