"""HTTP from outside: who may ask, how much, until when; every route, the page and the API description."""
