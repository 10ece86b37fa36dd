"""The registry's part of decisions: their record, who agreed, and where aliases stand.

record     a decision with all that it was made of
timeline   the moves of aliases, read from the runs that made them
tags       tags of runs, versions and registered models
times      times as tags have them
journal    the run of a decision
moves      aliases that move together or not at all
lease      one promoter of a registered model at a time
approvals  people who say yes, bound to a version's files
standings  where an alias stands, against the decisions on record
drift      aliases that stand where no decision put them
actor      who decides
"""
