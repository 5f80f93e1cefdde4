"""
The verbs that work on clusters from outside, by the contexts of a kubeconfig.

    install enable disable connect disconnect status troubleshoot sysdump
      │ read   objects.py ▶ installation.py ▶ rows.py   what a cluster is, as frozen rows
      │ judge  checks.py, plan.py, overview.py          pure: what is wrong, what has to change
      └ do     changes.py, helm.py, pods.py, steps.py   API servers, helm, daemons, peers' etcds
"""
