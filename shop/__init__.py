"""An order system on Eventkeel. It uses the framework's public door only, like any other user."""
