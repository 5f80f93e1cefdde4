"""
The verbs that work on clusters from outside, by the contexts of a kubeconfig.

    verbs: install enable connect disconnect status troubleshoot sysdump
      │ read ▶ installation.py ▶ rows.py      what a cluster is, as frozen rows
      │ judge ▶ checks.py, plan.py            pure: what is wrong, what has to change
      └ do ▶ changes.py, helm.py, pods.py     the API server, the user's helm, the daemons
"""
