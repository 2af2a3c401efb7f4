-- Runs once, on the empty server. Creates the service's role, which owns its database and is not a superuser.
\set password `cat /run/secrets/goals_password`
CREATE ROLE goals_user LOGIN PASSWORD :'password';
CREATE DATABASE goals_database OWNER goals_user;
REVOKE ALL ON DATABASE goals_database, postgres FROM PUBLIC;
