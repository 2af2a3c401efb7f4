// The scenario of the original Go app for k6: users, duration and check of scenarios/original.toml, with a summary like ours.
import http from 'k6/http';
import { check } from 'k6';

export const options = {
  vus: Number(__ENV.VUS || 100),
  duration: __ENV.DURATION || '30s',
  summaryTrendStats: ['avg', 'min', 'med', 'max', 'p(90)', 'p(95)', 'p(99)', 'count'],
  insecureSkipTLSVerify: false,
};

export default function () {
  const response = http.get(__ENV.TARGET);
  check(response, { 'endpoint was successful': (answer) => answer.status === 200 });
}

export function handleSummary(data) {
  return { [__ENV.SUMMARY]: JSON.stringify(data) };
}
